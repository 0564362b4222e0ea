"""Calls something in a process that has done nothing yet."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor


def in_a_fresh_process(work, *args, **kwargs):
    """What a function of a module returns, called in a new interpreter, which may fork processes that train.

    Here that is not so for sure: once a backward pass has needed threads, as one that is nested deeply does, autograd
    refuses to work in whatever is forked.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *args, **kwargs).result()
