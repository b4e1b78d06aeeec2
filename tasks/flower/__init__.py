"""Flower for a fleet of gateways: its workers, lanes and Gateways page out of Redis. Needs the extra ``flower``."""
