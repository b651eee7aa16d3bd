"""Everything that touches torch. Imported by `startup.py` alone, late and in the engine's thread, because torch takes seconds.

architecture: what builds the module · weights: the checkpoint into it · forward: running it · proof: whether rows mix.
"""
