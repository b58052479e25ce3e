import sys

from gpt2opt.cli import main

sys.exit(main())
