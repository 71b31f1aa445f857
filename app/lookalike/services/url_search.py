"""Finding the pictures that look most like the one at an address."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import BinaryIO

from lookalike.errors import FetchingDisabledError
from lookalike.media.fetching import Fetcher
from lookalike.services.search import SearchOptions, SearchResult, SearchService
from lookalike.services.timing import Stopwatch


class UrlSearchService:
    """Searches by the picture at an address.

    Args:
        search: Searches by the picture once it is here.
        fetcher: Fetches it; None where fetching is not turned on.
    """

    def __init__(self, search: SearchService, fetcher: Fetcher | None) -> None:
        self._search = search
        self._fetcher = fetcher

    def require_fetcher(self) -> Fetcher:
        """The fetcher. Raises `FetchingDisabledError` where fetching is not turned on."""
        if self._fetcher is None:
            raise FetchingDisabledError
        return self._fetcher

    def search(
        self,
        address: str,
        options: SearchOptions,
        *,
        place: Callable[[], AbstractContextManager[None]] = nullcontext,
        keep: Callable[[BinaryIO], object] | None = None,
    ) -> SearchResult:
        """Fetches a picture and finds the pictures most like it.

        Args:
            address: Where the picture is; http or https.
            options: What to look for.
            place: Holds a place for the search; entered when the picture is here, so that a slow
                address takes none.
            keep: Given the picture once it was searched with, before it is gone.

        Raises:
            FetchingDisabledError: Fetching is not turned on.
            FetchError: The picture cannot be had; `Fetcher.fetch` says more.
            LookalikeError: Whatever `SearchService.search` and `place` raise.
        """
        watch = Stopwatch()
        fetcher = self.require_fetcher()
        with fetcher.fetch(address) as picture:
            fetched = watch.took_ms()["total"]
            with place():
                result = self._search.search(picture, options)
            if keep is not None:
                picture.seek(0)
                keep(picture)
        took_ms = {"fetch": fetched, **result.took_ms, "total": watch.took_ms()["total"]}
        return replace(result, took_ms=took_ms)
