"""Measurements next to pinned peers, in the rooms of the packages that they measure.

``measure`` is what they share; results/ holds what they found, dated and with the machine. Nothing in the packages may
import from here; the tests may.
"""
