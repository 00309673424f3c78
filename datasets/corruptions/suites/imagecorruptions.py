"""Levels 1 to 5 of imagecorruptions (Hendrycks and Dietterich 2019; Michaelis et al. 2019)."""

from __future__ import annotations

from ..image_snow import ImageSnow

FOG = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))  # weight, decay
SNOW = (
    ImageSnow(mean=0.1, zoom=3, threshold=0.5, radius=10, sigma=4, mix=0.8),
    ImageSnow(mean=0.2, zoom=2, threshold=0.5, radius=12, sigma=4, mix=0.7),
    ImageSnow(mean=0.55, zoom=4, threshold=0.9, radius=12, sigma=8, mix=0.7),
    ImageSnow(mean=0.55, zoom=4.5, threshold=0.85, radius=12, sigma=8, mix=0.65),
    ImageSnow(mean=0.55, zoom=2.5, threshold=0.85, radius=12, sigma=12, mix=0.55),
)
