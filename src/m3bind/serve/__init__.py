"""A space and an index as a web service: an API under /api, a page, health and metrics (extra `serve`).

* `app`: `make_app`, the complete ASGI application. * `run`: it as a process, from start to an orderly shutdown.
* `service`: state that all routes share. `routes_about`, `routes_ask`, `routes_items`: the routes.
* `index_reload`: the current index, opened again after changes. * `queues`: bounded queues in front of the towers.
* `query`: parts of a query -> one vector. `phrases`, `zero_shot_answer`, `layout`: results computed from it.
* `previews`, `pictures`, `lru_cache`: reduced files, and images of them. * `multipart`, `uploads`: uploaded files.
* `middleware`: checks of a request's headers. `access`: the token. `request_limits`: time limits, disconnected clients.
* `settings`: all limits. `errors`: errors as answers. `schemas`: shapes of requests and answers. `metrics`.
"""
