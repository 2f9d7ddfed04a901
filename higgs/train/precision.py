"""In which number format a run of training computes: chosen once, by what the processor can, and written down."""

import torch


def best_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """bfloat16 on accelerators and on CPUs that multiply it (AVX512-BF16, AMX), else float32.

    A CPU that emulates bfloat16 is some six times slower with it than with float32.
    """
    if torch.device(device).type != "cpu":
        return torch.bfloat16
    can = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if can else torch.float32


def autocast(device: torch.device | str, dtype: torch.dtype) -> torch.autocast:
    """Matrix products in `dtype`, and in float32 without any casting where that is float32."""
    return torch.autocast(torch.device(device).type, dtype=dtype, enabled=dtype != torch.float32)
