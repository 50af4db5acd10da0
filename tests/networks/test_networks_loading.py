from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from small_networks import IDS, SMALL, build
from torch import Tensor, nn

from srquant.errors import UserError
from srquant.networks import ABPN, ABPNConfig, EDSRConfig, NetworkConfig, SRNetwork
from srquant.networks.loading import load_network, save_network

CONFIG = ABPNConfig(scale=2, width=4, layers=3)


def network() -> SRNetwork:
    return build("abpn", CONFIG)


def state() -> dict[str, Tensor]:
    return dict(network().state_dict())


def same(left: SRNetwork, right: SRNetwork) -> bool:
    a, b = left.state_dict(), right.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        load_network(path)
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    assert len(message) < 600
    return message


@pytest.mark.parametrize(("name", "config"), SMALL, ids=IDS)
def test_saved_networks_come_back_bit_exact(name: str, config: NetworkConfig, tmp_path: Path) -> None:
    original = build(name, config)
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_network(original, first)
    before = torch.get_rng_state()
    loaded = load_network(first)
    assert torch.get_rng_state().equal(before)
    assert (loaded.config, loaded.info, type(loaded)) == (original.config, original.info, type(original))
    assert same(loaded, original)
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    x = torch.rand(1, original.info.channels, 4, 5) * original.info.peak
    assert loaded(x).equal(original(x))
    save_network(loaded, second)
    assert first.read_bytes() == second.read_bytes()


def test_weights_in_another_memory_format_are_saved(tmp_path: Path) -> None:
    other = nn.Module.to(network(), memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    save_network(other, tmp_path / "a.safetensors")
    assert same(load_network(tmp_path / "a.safetensors"), network())


def test_saving_needs_the_suffix_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"suffix is '.pth'; allowed: .safetensors"):
        save_network(network(), tmp_path / "a.pth")
    with pytest.raises(UserError, match="does not exist"):
        save_network(network(), tmp_path / "no" / "a.safetensors")
    assert not list(tmp_path.iterdir())


PREFIXES = ["", "module.", "_orig_mod.", "model.", "module._orig_mod.", "model.module."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("wrapper", ["", "params_ema", "params", "state_dict", "model"])
@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_wrappers_and_prefixes_are_taken_off(wrapper: str, prefix: str, suffix: str, tmp_path: Path) -> None:
    content: dict = {prefix + key: tensor for key, tensor in state().items()}
    if wrapper:
        content = {wrapper: content, "epoch": 3, "optimizer": {"lr": 1e-4}}
    torch.save(content, tmp_path / f"a{suffix}")
    loaded = load_network(tmp_path / f"a{suffix}")
    assert isinstance(loaded, ABPN)
    assert loaded.config == CONFIG
    assert same(loaded, network())


def test_the_averaged_weights_win_and_wrappers_nest(tmp_path: Path) -> None:
    other = build("abpn", CONFIG, seed=1)
    torch.save({"params": other.state_dict(), "params_ema": state()}, tmp_path / "a.pth")
    assert same(load_network(tmp_path / "a.pth"), network())
    torch.save({"model": {"state_dict": OrderedDict(state())}}, tmp_path / "b.PTH")
    assert same(load_network(tmp_path / "b.PTH"), network())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_other_float_types_become_float32(dtype: torch.dtype, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    content = {key: tensor.to(dtype) for key, tensor in state().items()}
    save_file(content, path) if suffix == ".safetensors" else torch.save(content, path)
    loaded = load_network(path)
    for key, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.float32
        assert tensor.equal(content[key].float())


def test_the_old_format_of_torch_loads(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert same(load_network(tmp_path / "a.pth"), network())


def test_the_header_has_precedence_over_recognition(tmp_path: Path) -> None:
    config = EDSRConfig(scale=2, blocks=1, width=4, res_scale=0.25, mean=(3.0, 2.0, 1.0), peak=255.0, gain=1.5)
    save_network(build("edsr", config), tmp_path / "a.safetensors")
    assert load_network(tmp_path / "a.safetensors").config == config


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"srquant_artefact": "1"}, "is a quantised artefact"),
        ({"srquant_artefact": "1", "srquant": "{}"}, "is a quantised artefact"),
        ({"srquant": "{"}, "no JSON"),
        ({"srquant": "[" * 100_000}, "no JSON"),
        ({"srquant": "[]"}, "lacks a network name and a config"),
        ({"srquant": '{"network": "abpn"}'}, "lacks a network name and a config"),
        ({"srquant": '{"network": "abpm", "config": {}}'}, "did you mean 'abpn'"),
        ({"srquant": '{"network": "abpn", "config": {}}'}, "lacks the key 'scale'"),
        ({"srquant": '{"network": "abpn", "config": {"scale": 3, "layers": 1000000}}'}, "layers is 1000000"),
        ({"srquant": '{"network": "abpn", "config": {"scale": 3, "layers": 3, "width": 4}}'}, "expected"),
        ({"srquant": '{"network": "rdn", "config": {"scale": 3}}'}, "lack the key 'SFENet1.weight'"),
    ],
)
def test_wrong_headers_are_refused(metadata: dict[str, str], message: str, tmp_path: Path) -> None:
    save_file(state(), tmp_path / "a.safetensors", metadata)
    assert message in refusal(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("body.2.bias", torch.full((12,), float("nan")), "'body.2.bias' holds NaN or infinite values"),
        ("body.2.bias", torch.full((12,), 1e300, dtype=torch.float64), "holds NaN or infinite"),
        ("body.2.bias", torch.zeros(12, dtype=torch.int64), "holds torch.int64, expected torch.float32"),
        ("body.2.bias", torch.zeros(12, dtype=torch.complex64), "holds torch.complex64"),
        ("body.2.bias", torch.zeros(11), "shape [11], expected [12]"),
        ("body.2.bias", None, "lack the key 'body.2.bias'"),
        ("body.6.bias", torch.zeros(12), "unexpected key 'body.6.bias'"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_that_do_not_fit_are_refused(
    key: str, value: Tensor | None, message: str, suffix: str, tmp_path: Path
) -> None:
    content = state()
    content.pop(key, None)
    if value is not None:
        content[key] = value
    path = tmp_path / f"a{suffix}"
    save_file(content, path) if suffix == ".safetensors" else torch.save(content, path)
    assert message in refusal(path)


def test_paths_that_are_no_checkpoint(tmp_path: Path) -> None:
    assert "there is no such file" in refusal(tmp_path / "none.pth")
    assert "there is no such file" in refusal(tmp_path / "none")
    (tmp_path / "a.onnx").touch()
    assert refusal(tmp_path / "a.onnx").endswith("the suffix is '.onnx'; allowed: .safetensors, .pth, .pt")
    for folder in ("folder.pth", "folder"):
        (tmp_path / folder).mkdir()
        assert "it is a folder" in refusal(tmp_path / folder)
    for suffix in (".pth", ".pt", ".safetensors"):
        (tmp_path / f"empty{suffix}").touch()
        assert "the file is empty" in refusal(tmp_path / f"empty{suffix}")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_downloads_gone_wrong(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_text("\n<!DOCTYPE html><html><body>404</body></html>")
    assert "web page" in refusal(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "Git LFS pointer" in refusal(path)
    path.write_bytes(os.urandom(64) * 20)
    refusal(path)


def test_files_under_the_wrong_suffix(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "a.pth")
    assert "rename it to .safetensors" in refusal(tmp_path / "a.pth")
    torch.save(state(), tmp_path / "b.safetensors")  # torch does not look at the suffix
    assert "rename it to .pth" in refusal(tmp_path / "b.safetensors")


def test_safetensors_with_a_bad_header(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for header in (b"{", b'{"a": 1}', b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 400]}}'):
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
        assert "no whole safetensors file" in refusal(path)
    path.write_bytes((2**60).to_bytes(8, "little") + b"{}" + bytes(40))
    assert "no whole safetensors file" in refusal(path)


class Code:
    def __reduce__(self) -> tuple:
        return (os.system, ("touch /tmp/srquant-was-here",))


def test_pickled_code_is_refused(tmp_path: Path) -> None:
    torch.save({"head.0.weight": Code()}, tmp_path / "a.pth")
    assert "holds pickled code (" in refusal(tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(Code(), protocol=2))
    assert "holds pickled code (" in refusal(tmp_path / "b.pth")
    torch.save(network(), tmp_path / "c.pth")
    assert "holds pickled code (srquant.networks.abpn.ABPN), which is refused" in refusal(tmp_path / "c.pth")
    (tmp_path / "d.pth").write_bytes(pickle.dumps({"a": 1}, protocol=4))
    assert "not written by torch.save" in refusal(tmp_path / "d.pth")
    assert not Path("/tmp/srquant-was-here").exists()


def test_archives_that_are_no_checkpoint(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "holds a zip archive that is no PyTorch checkpoint (1 entries" in refusal(tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "b.pth", "w"):
        pass
    assert "no PyTorch checkpoint (0 entries" in refusal(tmp_path / "b.pth")
    with zipfile.ZipFile(tmp_path / "c.pth", "w") as archive:
        archive.writestr("x/data.pkl", "not a pickle")
    assert "damaged, cut short" in refusal(tmp_path / "c.pth")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Conv2d(3, 3, 1)), tmp_path / "a.pt")
    assert "TorchScript" in refusal(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not a state dict"),
        (torch.zeros(3), "holds a Tensor, not a state dict"),
        ({}, "holds no tensors"),
        ({"epoch": 1}, "under 'epoch' is a int, not a tensor"),
        ({1: torch.zeros(1)}, "under 1 is a Tensor"),
        ({"a": torch.zeros(2).to_sparse()}, "'a' is sparse"),
        ({"a": torch.zeros(2, device="meta")}, "without values"),
        (
            {f"layer\n{i}": torch.zeros(1) for i in range(9)},
            "no known network has these 9 keys ('layer\\n0', 'layer\\n1', 'layer\\n2', 'layer\\n3', ..); "
            "known networks: edsr, srresnet, rdn, imdn, abpn, xlsr",
        ),
    ],
)
def test_contents_that_are_no_known_state_dict(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    assert message in refusal(tmp_path / "a.pth")


def test_a_container_that_holds_itself_ends(tmp_path: Path) -> None:
    content: dict = {}
    content["model"] = content
    torch.save(content, tmp_path / "a.pth")
    assert "under 'model' is a dict" in refusal(tmp_path / "a.pth")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    save_network(network(), folder / "a.safetensors")
    torch.save(state(), folder / "zip.pth")
    torch.save(state(), folder / "old.pth", _use_new_zipfile_serialization=False)
    files = {path.name: path for path in folder.iterdir()}
    for path in files.values():
        assert same(load_network(path), network())
    return {name: path.read_bytes() for name, path in files.items()}


FORMATS = pytest.mark.parametrize("name", ["a.safetensors", "zip.pth", "old.pth"])
QUICK = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


@FORMATS
@QUICK
@given(part=st.floats(0, 1, exclude_max=True))
def test_files_cut_at_any_byte_are_refused(name: str, part: float, whole: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(whole[name][: int(part * len(whole[name]))])
    assert "pickled code" not in refusal(path)


@FORMATS
@QUICK
@given(place=st.integers(-1500, 1500), flip=st.integers(1, 255))
def test_flipped_bytes_load_or_are_refused_but_never_crash(
    name: str, place: int, flip: int, whole: dict[str, bytes], tmp_path: Path
) -> None:
    content = bytearray(whole[name])
    content[place % len(content)] ^= flip
    path = tmp_path / name
    path.write_bytes(content)
    try:
        load_network(path)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_the_header_is_plain_json(tmp_path: Path) -> None:
    save_network(network(), tmp_path / "a.safetensors")
    raw = (tmp_path / "a.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert json.loads(header["__metadata__"]["srquant"]) == {
        "network": "abpn",
        "config": {"scale": 2, "width": 4, "layers": 3},
    }
