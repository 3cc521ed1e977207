"""Images to train on: ``fetch`` gets and verifies CIFAR-10 (no torch), ``images`` serves batches.

Empty on purpose: ``from dcasgd_repro.data.fetch import home`` must answer without loading torch.
"""
