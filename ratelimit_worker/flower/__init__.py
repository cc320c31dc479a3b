"""Flower for an app with lanes: its own pages, and in addition the pages of "Rate limit".

`command` is the command; `serve` runs Flower; `board` reads state and pins modes; `page`, `pages`, `calls`, `figures`
and `alerts` handle requests; `loader` adds a link to Flower's navigation; `summaries` keeps answers out of its task
pages. Only this package imports Flower, which is an optional extra.
"""
