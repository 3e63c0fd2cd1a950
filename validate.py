#!/usr/bin/env python3
"""The command ``python -m a2aug_timm.validate`` under the name that timm's users type; ``--help`` lists its flags."""
from timm.utils import setup_default_logging

from a2aug_timm.validate.__main__ import main

if __name__ == '__main__':
    setup_default_logging()
    main()
