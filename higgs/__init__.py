"""Higgs Audio V2: codec, model, serving, training and evaluation."""
