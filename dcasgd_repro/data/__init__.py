"""Images to train on: ``fetch`` gets and verifies CIFAR-10 (no torch), ``images`` serves batches.

``folders`` serves those of ImageNet's folders, ``decode`` (no torch) makes them pixels; ``memory``
serves tensors of one's own. Empty on purpose: ``from dcasgd_repro.data.fetch import home`` must
answer without loading torch.
"""
