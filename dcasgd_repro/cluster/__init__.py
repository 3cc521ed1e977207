"""A real asynchronous run: the simulator's ``Server`` behind pull and push, across processes.

``protocol`` says what a server does with a call, without any library; ``ray`` carries it on Ray.
"""
