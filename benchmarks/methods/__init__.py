"""The paper's rivals, one file a method, on PEFT and plain PyTorch, with one search for all.

GA, GD, KL and NPO train a LoRA, MMU every parameter, MMU* a LoRA under MMU's mask; MANU prunes and
KVW weakens from statistics that `kvwstream collect` stored; the oracle is trained anew.
"""
