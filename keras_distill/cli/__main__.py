"""`python -m keras_distill.cli`, where the command isn't on the path."""

import sys

from keras_distill.cli.program import main

if __name__ == "__main__":
    sys.exit(main())
