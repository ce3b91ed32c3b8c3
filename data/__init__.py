"""Images and labels in and out: dataset specs, splits, transforms, the pseudo-label store, generated data."""
