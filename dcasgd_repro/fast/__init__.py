"""Faster engines: the plain loop's Steps, with the gradients computed side by side.

A gradient's inputs are fixed when its worker pulls, so all gradients in flight are independent.
Every engine here lets ``simulate`` itself replay the messages, and hands it a task whose gradients
are there already; no engine has a second loop or a second formula. ``threads.py``: one CPU thread
for each gradient. ``waves.py``: all gradients in flight as one batch [K, P], and several
simulations in one wave. ``graphs.py``: a wave as one CUDA graph. ``fused.py``: the server's update
in one pass over memory.
"""
