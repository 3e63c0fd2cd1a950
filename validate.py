#!/usr/bin/env python3
"""The command ``python -m a2aug_timm.validate`` under the name that timm's users type; ``--help`` lists its flags."""
from a2aug_timm.validate.__main__ import command

if __name__ == '__main__':
    command()
