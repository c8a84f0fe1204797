"""A space and an index as a web service: an API under /api, a page, health and metrics (extra `serve`).

* `app`: `make_app`, the whole as an ASGI application. * `run`: it as a process, from start to an orderly end.
* `service`: what all routes share. `routes_about`, `routes_ask`, `routes_items`: the routes.
* `archive`: the index as it is now, opened anew when it changed. * `queues`: bounded waiting in front of the towers.
* `query`: parts of a question -> one vector. `phrases`, `zero_shot`, `layout`: what is computed from it.
* `previews`, `pictures`, `lru_cache`: what can be seen of a file. * `multipart`, `uploads`: files that people bring.
* `middleware`: what a request must be before anything reads it. `access`: the token. `watch`: time, clients that left.
* `settings`: all limits. `errors`: errors as answers. `schemas`: shapes of questions and answers. `metrics`.
"""
