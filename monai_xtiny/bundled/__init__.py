"""Python that travels in a bundle, in its folder ``scripts``.

These files import PyTorch, MONAI, ignite and nibabel, each other, and nothing else of this package:
a bundle runs without it. Axis order is MONAI's: C, *spatial.
"""
