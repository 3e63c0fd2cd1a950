"""Images of an evaluation: data set, loader, and labels that replace or narrow the labels of the data."""
import argparse
import json
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageDataset, create_loader, create_naflex_loader
from timm.models import NaFlexVit
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from ..cli.resolve import dtype_of
from ..data.datasets import create_dataset, names_of_classes
from ..data.skipping import SkippingDataset
from ..engine.meters import PrecisionRecallF1, RealLabels
from .checks import read_valid_labels


def build_dataset(args: argparse.Namespace, data_config: dict[str, Any], label_names: list[str] | None) -> Dataset[Any]:
    """Open the images; images that do not decode are skipped, except in a stream.

    Raises:
        ValueError: The data is not there, or has classes that are not in ``label_names``.
    """
    mode = args.input_img_mode or ('RGB' if data_config['input_size'][0] == 3 else 'L')
    dataset = create_dataset(
        args.dataset, args.data_dir, args.split, allow_no_split=True, class_names=label_names,
        class_map=args.class_map, download=args.dataset_download, load_bytes=args.tf_preprocessing,
        num_samples=args.num_samples, input_key=args.input_key, target_key=args.target_key, input_img_mode=mode,
        trust_remote_code=args.dataset_trust_remote_code, seed=args.seed)
    # TensorFlow decodes by itself.
    if isinstance(dataset, IterableDataset) or args.tf_preprocessing:
        return dataset
    dataset = SkippingDataset(dataset, mode)
    if args.input_key or args.target_key:
        try:
            dataset[0]
        except (KeyError, TypeError) as error:  # of a data set that has no such field
            raise ValueError(f"cannot read the first image and label of '{args.dataset}' with --input-key "
                             f'{args.input_key} and --target-key {args.target_key}: {error}') from error
    return dataset


def build_loader(
        args: argparse.Namespace,
        dataset: Any,
        data_config: dict[str, Any],
        patch_size: tuple[int, int] | None,
        batch_size: int,
) -> Any:
    """Build timm's loader of a data set; with ``--naflex-loader``, of patches of this size."""
    names = ('interpolation', 'mean', 'std', 'crop_pct', 'crop_mode')
    common = dict(
        batch_size=batch_size, use_prefetcher=not args.no_prefetcher, num_workers=args.workers,
        pin_memory=args.pin_mem, device=torch.device(args.device),
        img_dtype=dtype_of(args.model_dtype) or torch.float32, crop_border_pixels=args.crop_border_pixels,
        **{name: data_config[name] for name in names})
    if not args.naflex_loader:
        return create_loader(
            dataset, data_config['input_size'], tf_preprocessing=args.tf_preprocessing, **common)
    return create_naflex_loader(
        dataset, channels=data_config['input_size'][0], patch_size=patch_size,
        max_seq_len=args.naflex_max_seq_len, **common)


def check_naflex(model: nn.Module, num_branches: int) -> None:
    """Raise ``ValueError`` if ``--naflex-loader`` gives a model what it does not take."""
    if num_branches > 1:
        raise ValueError('--naflex-loader is for plain models; branches were trained on whole images')
    if not isinstance(model, NaFlexVit):
        raise ValueError(f'--naflex-loader needs a NaFlex model, not {type(model).__name__}; timm builds many ViTs as '
                         'one with --model-kwargs use_naflex=True')


def valid_labels(path: str, num_classes: int) -> list[int] | None:
    """Classes of the model that correspond to the classes of the data, in order; None if they are the same.

    Raises:
        ValueError: The model has no such class.
    """
    if not path:
        return None
    labels = read_valid_labels(path)
    if max(labels) >= num_classes:
        raise ValueError(f"'{path}' holds class {max(labels)}, the model has {num_classes} classes")
    return labels


def check_classes(dataset: Dataset[Any], num_classes: int, valid: list[int] | None) -> None:
    """Raise ``ValueError`` if the data has classes that the model, or its selected logits, do not have."""
    names = names_of_classes(getattr(dataset, 'dataset', dataset))
    if not names:
        return
    if valid is not None and len(names) != len(valid):
        raise ValueError(f'the data has {len(names)} classes, but --valid-labels names {len(valid)}')
    if valid is None and len(names) > num_classes:
        raise ValueError(f'the data has {len(names)} classes, the model {num_classes}')


def build_meters(args: argparse.Namespace, dataset: Dataset[Any], num_classes: int) -> list[Any]:
    """Build the additional meters of ``evaluate``.

    Raises:
        ValueError: The reassessed labels do not belong to these images.
    """
    meters: list[Any] = []
    if args.metrics_avg:
        meters.append(PrecisionRecallF1(args.metrics_avg))
    if args.real_labels:
        meters.append(RealLabels(_names_of_images(args.real_labels, dataset, num_classes), args.real_labels))
    return meters


def _names_of_images(path: str, dataset: Dataset[Any], num_classes: int) -> list[str]:
    images = getattr(dataset, 'dataset', dataset)
    if not isinstance(images, ImageDataset):
        raise ValueError('--real-labels goes by the names of image files, so it needs a folder or tar file of them')
    try:
        labels = json.loads(Path(path).read_text(encoding='utf-8'))
        largest = max((max(one) for one in labels if one), default=0)
    except (ValueError, TypeError) as error:
        raise ValueError(f"'{path}' is no JSON list of the labels of each image") from error
    names = images.filenames(basename=True)
    known = {f'ILSVRC2012_val_{i + 1:08d}.JPEG' for i in range(len(labels))}
    if len(names) != len(labels) or not known.issuperset(names):
        raise ValueError(f"'{path}' holds the labels of {len(labels)} images ILSVRC2012_val_00000001.JPEG and so on; "
                         f'the data has {len(names)}, beginning with {names[0]}')
    if largest >= num_classes or num_classes < 5:
        raise ValueError(f"'{path}' holds class {largest}, the model has {num_classes} classes")
    return names
