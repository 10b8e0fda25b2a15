"""The ops in Triton's language, a module an op; imported at the first launch, as the package may be missing."""
