"""Scoring, for the launchers that start a script.

    python serve.py batch --model DIR --input FILES... --output DIR [--ads FILE]
    python serve.py http --model DIR [--host 127.0.0.1] [--port 8000] [--token TOKEN]
"""

from recsys.serving.commands import main

if __name__ == "__main__":
    main()
