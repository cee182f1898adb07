"""Speculative decoding: who guesses tokens, and how many are tried. No answer depends on it.

A guess is accepted exactly when it is the token that would have been drawn anyway: a draw depends
on the logits, the request and its position alone, and logits on no other row of a pass.
"""
