#!/usr/bin/env python3
"""What A²-Aug costs: every figure a ratio of two things that ran alternately on this machine.

    python benchmarks/cost.py [--upstream PATH/TO/timm's/train.py] [--only steps loader one_view epoch]

Prints a Markdown table and says which lines fall short of what is wanted. timm's script is not part of this project;
without it the part `epoch` is left out. The committed result stands in cost.md.
"""
import argparse
import platform
from datetime import date
from itertools import chain

import cost_epoch
import cost_loader
import cost_one_view
import cost_steps
import PIL
import timm
import torch
from cost_table import print_table

PARTS = {'steps': cost_steps, 'loader': cost_loader, 'one_view': cost_one_view, 'epoch': cost_epoch}
MODELS = {'cpu': [('resnet18', 96), ('resnet50', 96)], 'cuda': [('resnet50', 224), ('wide_resnet28_10', 32)]}
BATCH = {'cpu': 16, 'cuda': 64}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', nargs='+', choices=PARTS, default=list(PARTS))
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--batch', type=int, help='images a step')
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--workers', type=int, default=2)
    parser.add_argument('--upstream', metavar='FILE', help="timm's train.py")
    args = parser.parse_args()
    kind = torch.device(args.device).type
    args.models, args.batch = MODELS[kind], args.batch or BATCH[kind]
    name = torch.cuda.get_device_name() if kind == 'cuda' else f'{torch.get_num_threads()} CPU threads'
    print(f'B={args.batch}, {args.rounds} rounds, {name}{", bfloat16 autocast" if kind == "cuda" else ""}, '
          f'{platform.machine()}, torch {torch.__version__}, timm {timm.__version__}, Pillow {PIL.__version__}, '
          f'{date.today()}\n')
    short = print_table(chain.from_iterable(PARTS[part].lines(args) for part in args.only))
    print(f'\n{len(short)} lines fall short.' if short else '\nNo line falls short.')


if __name__ == '__main__':
    main()
