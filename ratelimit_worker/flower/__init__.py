"""Flower on this app: its stock pages, and a page "Rate limit" beside them.

`command` is the command line's, `serve` the process; `board` asks and pins, `pages` are the requests, `loader` puts the
link into Flower's navigation, `summaries` keeps answers out of its task pages. Only these import Flower, which is an
optional extra.
"""
