"""Predicts class maps, refines them with a CRF, computes metrics, and writes masks, reports and exported models."""
