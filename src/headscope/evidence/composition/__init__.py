"""Composition: does a later head read what an earlier head writes?"""
