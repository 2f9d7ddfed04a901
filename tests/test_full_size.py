"""The benchmark of the released sizes, at small ones: it writes what loads, and loads without a second copy."""

import argparse
from dataclasses import replace

import pytest
import torch

from benchmarks import precision
from benchmarks.decode import SMALL, random_model
from benchmarks.full_size import FRAMES, GREEDY, in_a_process, of_ours, of_theirs, prompt, same_frames, write
from higgs.checkpoint.config_json import ORIGINAL, TRANSFORMERS
from higgs.cli.checkpoint_report import inspect_checkpoint
from higgs.model.kv_cache import KVCache
from higgs.model.matrices import can_pack
from higgs.serve.batching.slots import SlotDecoder


@pytest.mark.parametrize("layout", [ORIGINAL, TRANSFORMERS])
def test_what_it_writes_speaks_as_the_port_does(tmp_path, layout):
    write(tmp_path, replace(SMALL, num_layers=4), layout)
    report = inspect_checkpoint(tmp_path)[0]
    assert report.layout == layout and len(report.weights) == 3 and not report.problems
    ours = of_ours(tmp_path, "bfloat16", offload_text=False)
    assert len(ours["codes"]) == 8 and len(ours["codes"][0]) == FRAMES
    if layout == TRANSFORMERS:
        theirs = of_theirs(tmp_path)
        assert same_frames({"codes": ours["loop"]}, theirs) == FRAMES
        if can_pack(torch.device("cpu"), torch.bfloat16):  # elsewhere products round by the number of rows
            assert same_frames(ours, theirs) == FRAMES
            assert ours["equal logits"] > 0.9, "roundings are those of the port, but for attention's last bits"


@pytest.mark.skipif(not can_pack(torch.device("cpu"), torch.bfloat16), reason="no products in bfloat16")
@pytest.mark.parametrize("frames", [2, 9, 20, 51, 86])
def test_a_prefix_in_bfloat16_has_the_bits_of_a_whole_prompt(frames):
    """The prefix is read by itself. (From 192 positions on attention takes larger blocks, and bits differ.)"""
    model, whole = random_model(SMALL, "cpu", torch.bfloat16), prompt(SMALL, frames)
    decoder, cache = SlotDecoder(model, 1, 300, steps_per_sync=1), KVCache(SMALL, 1, 300, "cpu", torch.bfloat16)
    decoder.prefill(0, whole, 20, GREEDY)
    model.prefill(whole, cache)
    for apart, together in zip(decoder.cache.layers, cache.layers, strict=True):
        pair = (kv[..., : cache.length, :] for kv in (apart, together))
        assert torch.eq(*pair).float().mean() > 0.999


@pytest.mark.slow
def test_loading_holds_no_second_copy(tmp_path):
    """Half a gigabyte of weights: what is held while they are loaded is at most a tenth above what stays.

    Beside it, what rounding one matrix takes: some six of 33 MB in float32, which the peak's sampling sees or misses.
    Of a second copy there would be 0.3 GB or more.
    """
    write(tmp_path, replace(SMALL, hidden_size=1024, intermediate_size=4096, num_layers=9, num_heads=16), TRANSFORMERS)
    stays = {}
    for dtype, more in (("bfloat16", []), ("int8", []), ("int4", []), ("int8", ["--offload-text"])):
        result = in_a_process(argparse.Namespace(folder=tmp_path), "ours", "--dtype", dtype, *more)
        before = result["before GB"]
        stays[dtype, *more] = result["stays GB"] - before
        assert result["peak GB"] - before <= 1.1 * stays[dtype, *more] + 0.22, (dtype, more)
    assert stays["int4",] < 0.65 * stays["int8",] and stays["int8", "--offload-text"] < 0.75 * stays["int8",]


@pytest.mark.slow
def test_precision_speaks_and_judges_the_same_texts_in_each_form(nano, tmp_path, monkeypatch, capsys):
    words = f"precision --out {tmp_path} --texts 2 --dtypes int8"
    monkeypatch.setattr("sys.argv", words.split())
    monkeypatch.setattr(precision, "print_logits", lambda config: None)
    precision.main()
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith("int8: ") and line.endswith("of 2 texts differ")
    made = {(dtype, path.name) for dtype in ("float32", "int8") for path in tmp_path.glob(f"{dtype}-*/*.flac")}
    assert len(made) == 12
