"""Training, for the launchers that start a script (torchrun, Slurm, Kubernetes, Ray): the same as ``recsys train``.

    python train.py FILE --out DIR [--arm NAME] [--set a.b=c ...]
"""

import sys

from recsys.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
