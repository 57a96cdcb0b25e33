"""Ablation: what the loss becomes without some heads."""
