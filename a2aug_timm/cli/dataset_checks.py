"""Which flags of the data each kind of data set can use; timm's readers fail on the others or ignore them."""
import argparse

from ..datasets import prefix_of

_EVERYWHERE = {'class_map', 'input_key', 'target_key'}
_LENGTHS = {'num_samples', 'train_num_samples', 'val_num_samples'}
_USED_BY = {
    'a folder': {'class_map', 'input_key'},
    'a tar file': {'class_map'},
    'sklearn/digits': set(),
    'torch/': {'dataset_download'},
    'hfds/': {*_EVERYWHERE, 'dataset_trust_remote_code'},
    'hfids/': {*_EVERYWHERE, 'dataset_trust_remote_code', 'dataset_download', 'epoch_repeats', *_LENGTHS},
    'tfds/': {*_EVERYWHERE, 'dataset_download', 'epoch_repeats'},
    'wds/': {*_EVERYWHERE, 'epoch_repeats', *_LENGTHS},
}
# torchvision's readers that load nothing: ImageFolder, and ImageNet, which its license keeps behind a login.
_WITHOUT_DOWNLOAD = ('torch/image_folder', 'torch/folder', 'torch/imagenet')


def check_dataset_flags(args: argparse.Namespace) -> None:
    """Raise ``ValueError`` for a flag that the kind of data set could not use."""
    kind = dataset_kind(args.dataset, args.data_dir)
    for name in sorted(set().union(*_USED_BY.values())):
        is_used = name in _USED_BY[kind] and not (
            name == 'dataset_download' and args.dataset.lower() in _WITHOUT_DOWNLOAD)
        if getattr(args, name, None) and not is_used:
            users = ', '.join(kind for kind, names in _USED_BY.items() if name in names)
            raise ValueError(f"--{name.replace('_', '-')} has no effect on {args.dataset or kind}; it is for {users}")


def dataset_kind(name: str, root: str | None) -> str:
    """What timm would read: ``a folder``, ``a tar file``, or the prefix of the data set's name."""
    prefix = f'{prefix_of(name)}/'
    if name == 'sklearn/digits' or prefix in _USED_BY:
        return name if name == 'sklearn/digits' else prefix
    return 'a tar file' if root and root.endswith('.tar') else 'a folder'
