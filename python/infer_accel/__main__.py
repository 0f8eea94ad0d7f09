"""`python -m infer_accel` is `infer-accel`."""

from infer_accel.cli import main

if __name__ == "__main__":
    main()
