"""From a selection to a MONAI bundle, and back."""
