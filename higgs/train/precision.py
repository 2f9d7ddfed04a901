"""The number format of a training run, chosen by what the processor supports."""

import torch


def best_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """bfloat16 on accelerators and on CPUs that multiply it (AVX512-BF16, AMX), else float32.

    Emulated bfloat16 is about six times slower than float32.
    """
    if torch.device(device).type != "cpu":
        return torch.bfloat16
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def autocast(device: torch.device | str, dtype: torch.dtype) -> torch.autocast:
    """Matrix products in `dtype`; disabled for float32."""
    return torch.autocast(torch.device(device).type, dtype=dtype, enabled=dtype != torch.float32)
