"""High dynamic range (ITU-R BT.2100) -> the range and colours of a common screen (BT.709), by tables.

swscale can do this, too, but takes seconds to prepare for each file that is opened.
"""

from functools import lru_cache

import numpy as np
from av.video.reformatter import ColorPrimaries, ColorTrc

HIGH_DYNAMIC_RANGE = (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)  # PQ and HLG

_WHITE = 203.0  # cd/m2 of diffuse white in HDR programmes (BT.2408)
_PEAK = 1000.0  # cd/m2 of the screen that HLG is shown on
_KNEE = 0.6  # of white: darker light is kept as it is, brighter light is rolled off
_FROM_BT2020 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], dtype=np.float32
)  # linear BT.2020 -> linear BT.709 (BT.2087)
_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], dtype=np.float32)  # of linear BT.2020
_STEPS = 4096  # of the table that encodes the result


def to_standard_range(codes: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """uint16 RGB (h, w, 3), full range, in the transfer curve `transfer` (PQ or HLG) -> uint8 RGB of BT.709."""
    light = _linear_light(transfer)[codes]
    if transfer == ColorTrc.ARIB_STD_B67:  # the screen's own curve: what the camera saw -> what is shown
        light *= np.maximum(light @ _LUMINANCE, 1e-6)[..., None] ** 0.2 * (_PEAK / _WHITE)
    if primaries != ColorPrimaries.BT709:
        light = np.maximum(light @ _FROM_BT2020.T, 0)
    brightest = light.max(axis=-1, keepdims=True)
    rolled = 1 - (1 - _KNEE) * np.exp((_KNEE - brightest) / (1 - _KNEE))
    light *= np.where(brightest > _KNEE, rolled / np.maximum(brightest, _KNEE), 1)  # all channels, to keep the hue
    return _encoding()[np.round(light * (_STEPS - 1)).astype(np.int32)]


@lru_cache(maxsize=2)
def _linear_light(transfer: int) -> np.ndarray:
    """Code (of 65536) -> float32 light: PQ relative to white, HLG relative to the brightest scene light."""
    code = np.arange(65536) / 65535
    if transfer == ColorTrc.SMPTE2084:
        root = code ** (1 / 78.84375)
        light = (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125)
        return (light * 10000 / _WHITE).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12).astype(np.float32)


@lru_cache(maxsize=1)
def _encoding() -> np.ndarray:
    """Light (of _STEPS) -> uint8 code of a screen with the exponent of BT.1886."""
    return np.round(255 * (np.arange(_STEPS) / (_STEPS - 1)) ** (1 / 2.4)).astype(np.uint8)
