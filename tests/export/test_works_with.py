"""What we export, in the hands of others: torch.export, the hub, re-parameterisation, ONNX Runtime, transformers."""
import json
import shutil
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import timm
import torch
import transformers
from huggingface_hub.errors import EntryNotFoundError
from PIL import Image
from timm.models import _hub
from timm.utils import reparameterize_model
from timm.utils.onnx import onnx_export

from a2aug_timm import convert_multi_branch_bn, export_branch, extract_branch, select_branch

LABELS = ['cat', 'dog', 'owl', 'elk', 'fox']
DYNAMIC_BATCH = ({0: torch.export.Dim('batch')},)


def trained_model(arch, in_chans=3, num_branches=3):
    """A model whose branches have moved apart, and whose batch norms no longer are the identity."""
    model = convert_multi_branch_bn(timm.create_model(arch, num_classes=5, in_chans=in_chans), num_branches)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    views = [torch.randn(4, in_chans, 64, 64) * (branch + 1) for branch in range(num_branches)]
    model(torch.cat(views)).square().mean().backward()
    optimizer.step()
    return model.eval()


def logits_of(model, images):
    with torch.no_grad():
        return model.eval()(images)


@pytest.fixture(params=[3, 1], ids=['RGB', 'grayscale'])
def export(request, tmp_path):
    """An export folder, images, and the logits that the branch in it had inside the multi-branch model."""
    in_chans = request.param
    model = trained_model('test_resnet', in_chans)
    data_config = dict(input_size=(in_chans, 48, 64), mean=(0.3,) * in_chans, std=(0.35,) * in_chans,
                       interpolation='bilinear', crop_pct=0.9, crop_mode='center')
    export_branch(model, 1, tmp_path / 'export', data_config=data_config, label_names=LABELS)
    images = torch.randn(4, in_chans, 48, 64)
    with select_branch(model, 1):
        return SimpleNamespace(folder=tmp_path / 'export', images=images, logits=logits_of(model, images),
                               data_config=data_config, mode='RGB' if in_chans == 3 else 'L')


def load(folder, **kwargs):
    return timm.create_model(f'local-dir:{folder}', pretrained=True, **kwargs).eval()


def test_torch_export_keeps_the_logits_of_an_export(export):
    program = torch.export.export(load(export.folder), (export.images[:2],), dynamic_shapes=DYNAMIC_BATCH)
    torch.testing.assert_close(program.module()(export.images), export.logits)


def test_torch_export_takes_the_branch_that_is_selected():
    model, images = trained_model('test_resnet'), torch.randn(4, 3, 64, 64)
    expected = [logits_of(extract_branch(model, branch), images) for branch in range(3)]
    assert not torch.allclose(expected[0], expected[2])
    for branch in (0, 2):
        with select_branch(model, branch):
            program = torch.export.export(model, (images[:2],), dynamic_shapes=DYNAMIC_BATCH)
        torch.testing.assert_close(program.module()(images), expected[branch])
    with pytest.raises(RuntimeError, match='choose one with select_branch'):
        torch.export.export(model, (images,))


def test_timms_push_to_the_hub_uploads_a_folder_that_loads_again(export, tmp_path, monkeypatch):
    uploaded = tmp_path / 'uploaded'
    for name, answer in (
            ('create_repo', lambda self, repo_id, **kwargs: SimpleNamespace(repo_id=repo_id)),
            ('file_exists', lambda self, **kwargs: False),
            ('upload_folder', lambda self, folder_path, **kwargs: shutil.copytree(folder_path, uploaded))):
        monkeypatch.setattr(_hub.HfApi, name, answer)
    timm.models.push_to_hf_hub(load(export.folder), 'somebody/digits', model_config={'label_names': LABELS})
    assert {path.name for path in uploaded.iterdir()} >= {'model.safetensors', 'config.json', 'README.md'}
    assert json.loads((uploaded / 'config.json').read_text())['label_names'] == LABELS
    again = load(uploaded)
    assert torch.equal(logits_of(again, export.images), export.logits)
    assert again.pretrained_cfg['label_names'] == LABELS
    for key, value in export.data_config.items():
        stored = again.pretrained_cfg[key]
        assert (tuple(stored) if isinstance(stored, list) else stored) == value


def test_an_export_as_it_is_is_a_repository_of_the_hub(export, monkeypatch):
    def download(repo_id, filename, **kwargs):
        if not (export.folder / filename).exists():
            raise EntryNotFoundError(filename)
        return str(export.folder / filename)

    monkeypatch.setattr(_hub, 'hf_hub_download', download)
    model = timm.create_model('hf-hub:somebody/digits', pretrained=True)
    assert torch.equal(logits_of(model, export.images), export.logits)
    assert model.pretrained_cfg['label_names'] == LABELS


@pytest.mark.parametrize('arch', ['repvit_m0_9', 'fastvit_t8', 'mobileone_s0'])
def test_reparameterising_a_branch_keeps_its_logits(arch, tmp_path):
    model, images = trained_model(arch, num_branches=2), torch.randn(2, 3, 64, 64)
    export_branch(model, 1, tmp_path)
    with select_branch(model, 1):
        expected = logits_of(model, images)
    assert not torch.allclose(logits_of(extract_branch(model, 0), images), expected, rtol=1e-3, atol=1e-4)
    plain = load(tmp_path)
    fused = reparameterize_model(plain)
    assert len(fused.state_dict()) < len(plain.state_dict())
    torch.testing.assert_close(logits_of(fused, images), expected, rtol=1e-4, atol=1e-5)


# The exporter by tracing, timm's default, calls itself deprecated.
@pytest.mark.filterwarnings('ignore::DeprecationWarning:timm.utils.onnx', 'ignore::DeprecationWarning:torch.onnx')
@pytest.mark.parametrize('use_dynamo', [False, True], ids=['traced', 'torch.export'])
def test_onnx_runtime_gives_the_logits_of_an_export(export, tmp_path, use_dynamo):
    path = str(tmp_path / 'model.onnx')
    onnx_export(load(export.folder, exportable=True), path, batch_size=2, use_dynamo=use_dynamo)
    session = onnxruntime.InferenceSession(path)
    logits, = session.run([], {session.get_inputs()[0].name: export.images.numpy()})
    np.testing.assert_allclose(logits, export.logits, rtol=1e-4, atol=1e-5)


def test_transformers_gives_the_logits_labels_and_pixels_of_an_export(export):
    model, info = transformers.AutoModelForImageClassification.from_pretrained(export.folder, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(logits_of(model, export.images).logits, export.logits)
    assert model.config.id2label == dict(enumerate(LABELS))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)).convert(export.mode)
    pixels = transformers.AutoImageProcessor.from_pretrained(export.folder)(image)['pixel_values']
    plain = load(export.folder)
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=plain))
    assert torch.equal(pixels, transform(image)[None])
    if export.mode == 'L':
        return  # the pipeline makes every image RGB
    answer = transformers.pipeline('image-classification', model=str(export.folder), top_k=5)(image)
    expected = logits_of(plain, pixels).softmax(-1)[0]
    assert [row['label'] for row in answer] == [LABELS[i] for i in expected.argsort(descending=True)]
    np.testing.assert_allclose([row['score'] for row in answer], expected.sort(descending=True)[0], rtol=1e-5)
