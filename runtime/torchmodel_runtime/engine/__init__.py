"""Everything that touches torch. Imported by `startup.py` alone, late and in the engine's thread, because torch takes seconds.

architecture: what builds the module · weights: the checkpoint into it · forward: running it, with collation (requests into a
batch), conversion (arrays and tensors), failures (who is to blame), transfer (to a GPU) · proof, comparison: whether rows mix ·
memory: how large a batch may be · timing, threads, replicas: several at the same time · devices: which one, and its settings.
"""
