"""KILM: knowledge injection by infilling descriptions of marked mentions (Xu et al., ACL 2023)."""

from kedit.kilm.build import build_corpus
from kedit.kilm.data import KilmData
from kedit.kilm.infiller import Infiller
from kedit.kilm.module import KilmModule

__all__ = ["Infiller", "KilmData", "KilmModule", "build_corpus"]
