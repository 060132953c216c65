"""What people use in place of AICL, to be compared with it: a LoRA for each action, guidance by a reference's attention
without training, and reference tokens in the sequence.

A package that registers itself (`aicl.baselines.register`) and that nothing imports; see docs/baselines.md.
"""
