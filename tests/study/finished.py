"""A small recipe of a study, and the files that a finished trial leaves."""
import csv
import json

from a2aug_timm.study.rows import Method

RECIPE = dict(
    dataset='sklearn/digits', model='wide_resnet10_1', num_classes=10, input_size=[1, 16, 16], mean=[0.3], std=[0.35],
    a2aug_branches=2, a2aug_num_layers=[1], a2aug_magnitudes=[2, 6, 10], epochs=1, batch_size=64, train_subset=128,
    holdout=100, warmup_epochs=0, workers=0, device='cpu')
METHOD = Method(2, [1], [2, 6, 10], 16)


def finish(study, trial, top1, held=None, seconds=10., mu=(0.25, 0.75), branches=(70., 80.), views=None):
    """Write the files of a finished trial, of which the second epoch is chosen.

    Args:
        views: Number of views of each row of the summary; two rows if not given.
    """
    path = study.path(trial)
    path.mkdir(parents=True)
    held = top1 if held is None else held
    result = {'epoch': 1, 'branch': 0, 'policy': 'p', 'eval_metric': 'top1', 'chosen_on': '100 held out',
              'chosen_with': {'top1': held}, 'test_split': 'validation', 'test': {'top1': top1, 'loss': 1 - top1 / 100}}
    (path / 'result.json').write_text(json.dumps(result))
    num = trial.setting.changes.get('a2aug_branches', 1)
    views = views or [500. * num * trial.setting.epochs] * 2
    rows = []
    for epoch, num_views in enumerate(views):
        row = {'epoch': epoch, 'train_loss': 1., 'train_views': float(num_views), 'train_seconds': seconds / len(views),
               'eval_top1': held - 1 + epoch}
        if num > 1:
            row.update({f'mu_{i}': mu[i % 2] for i in range(num)}, best_branch=0, eval_ensemble_top1=held)
            row.update({f'eval_branch_{i}_top1': branches[i % 2] for i in range(num)})
        rows.append(row)
    with open(path / 'summary.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
