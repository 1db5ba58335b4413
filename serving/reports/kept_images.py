"""The images of a report that the store keeps, and what their cells are known again by; and when images of queues are deleted.

Here alone they are put in, taken out and deleted; those of queues are put in with their cells. A fingerprint holds a small grey
picture of its cell: it is kept as long as the image, and encrypted where the image is.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import ColumnElement, delete, exists, select, true, update
from sqlalchemy.orm import Session

from serving.contract.site import Site
from serving.reports.labelling_tables import Asked, AskedImage, Queue
from serving.reports.store import IMAGE_KEYS, Store
from serving.reports.tables import Cell, KeptImage, Report
from serving.security.image_key import IMAGE_KEY_FILE, MAKE, ImageKey, ImageKeys
from wbc_model.core.errors import WbcError

REPORTS_AT_A_TIME: Final = 50  # whose images are deleted in one transaction
_PRINT: Final = "fingerprint of "  # what an encrypted fingerprint is about, before the SHA-256


def check_image_key(store: Store, site: Site) -> None:
    """Raises WbcError, in one line, where images are to be encrypted without a key, and where the key lies in the store's folder.

    It is also raised where images are encrypted with a key that is not there: nothing could show them. Where the site keeps no
    images this does not matter for those of reports, since they are deleted.
    """
    keys = store.image_keys
    key_of(keys, site)
    if keys.path is not None and store.folder is not None and keys.path.resolve().is_relative_to(store.folder):
        raise WbcError(
            f"{IMAGE_KEY_FILE}: {keys.path} lies in the folder of the store, and a copy of that would hold both; move it"
        )
    columns = [AskedImage.key] if site.keep_images is None else [AskedImage.key, KeptImage.key]
    with store.reading() as session:
        for column in columns:
            for name in session.scalars(select(column).where(column.is_not(None)).distinct()):
                keys.named(str(name))


def key_of(keys: ImageKeys, site: Site) -> ImageKey | None:
    """The key that a site's images are sealed with; None where they are not. Raises WbcError where they are without a key."""
    if site.keep_images is None or not site.keep_images.encrypted:
        return None
    if keys.newest is None:
        raise WbcError(f"the site's file says keep_images.encrypted, and {IMAGE_KEY_FILE} names no file with a key; {MAKE}")
    return keys.newest


def keep(session: Session, cells: Sequence[Cell], files: Sequence[bytes], prints: Sequence[bytes | None], site: Site) -> None:
    """Keep the files of new cells, which the session knows already, and their fingerprints; nothing where the site keeps none."""
    if site.keep_images is None:
        return
    key = key_of(_keys(session), site)
    session.flush()
    for cell, data, print_ in zip(cells, files, prints, strict=True):
        if cell.label is None:
            continue
        sealed = data if key is None else key.seal(data, cell.sha256)
        name = None if key is None else key.name
        session.add(KeptImage(report_id=cell.report_id, position=cell.position, key=name, data=sealed))
        cell.fingerprint = _sealed(print_, key, cell.sha256)


def images_of(session: Session, report_id: str, positions: Sequence[int]) -> dict[int, bytes]:
    """The files at these places of a report, as they were posted; of those that are kept. Raises WbcError where one is encrypted
    with a key that is not there."""
    query = select(Cell.position, Cell.sha256, KeptImage.key, KeptImage.data).join(KeptImage, _OF_CELL)
    query = query.where(Cell.report_id == report_id, Cell.position.in_(positions)).order_by(Cell.position)
    rows = session.execute(query)
    return {row.position: _opened(bytes(row.data), row.key, row.sha256, _keys(session)) for row in rows}


def fingerprints_of(session: Session, report_id: str) -> dict[int, bytes]:
    """By their places, what those cells of a report are known again by whose image is kept."""
    query = select(Cell.position, Cell.sha256, KeptImage.key, Cell.fingerprint).join(KeptImage, _OF_CELL)
    query = query.where(Cell.report_id == report_id, Cell.fingerprint.is_not(None)).order_by(Cell.position)
    rows = session.execute(query)
    return {row.position: _opened(bytes(row.fingerprint), row.key, _PRINT + row.sha256, _keys(session)) for row in rows}


def know_again(session: Session, report: Report, prints: Mapping[int, bytes | None]) -> None:
    """Replace the fingerprints of those cells of a report whose image is kept, by their places."""
    keys = dict(session.execute(select(KeptImage.position, KeptImage.key).where(KeptImage.report_id == report.id)).tuples().all())
    for cell in report.cells:
        if cell.position in keys and cell.position in prints:
            name = keys[cell.position]
            key = None if name is None else _keys(session).named(name)
            cell.fingerprint = _sealed(prints[cell.position], key, cell.sha256)


def delete_expired(store: Store, days: int, now: datetime) -> int:
    """Delete the images of all reports that were made more than so many days before `now`, and note it in the report; returns how
    many reports that were."""
    return _delete(store, Report.created_at < now - timedelta(days=days), now)


def delete_all(store: Store) -> int:
    """Delete all images, as `delete_expired` does: the site keeps none any more."""
    return _delete(store, true(), datetime.now(UTC))


def _delete(store: Store, which: ColumnElement[bool], now: datetime) -> int:
    has_images = exists().where(KeptImage.report_id == Report.id)
    to_delete = select(Report.id).where(which, has_images).limit(REPORTS_AT_A_TIME)
    with store.reading() as session:
        if session.scalar(to_delete) is None:
            return 0
    deleted = 0
    while True:
        with store.writing() as session:
            ids = list(session.scalars(to_delete))
            session.execute(update(Cell).where(Cell.report_id.in_(ids)).values(fingerprint=None))
            session.execute(delete(KeptImage).where(KeptImage.report_id.in_(ids)))
            session.execute(update(Report).where(Report.id.in_(ids)).values(images_deleted_at=now))
        deleted += len(ids)
        if len(ids) < REPORTS_AT_A_TIME:
            return deleted


def delete_of_closed_queues(store: Store, days: int, now: datetime) -> int:
    """Delete the images of all queues that were closed more than so many days before `now`; returns how many queues that were.
    What readers said of the cells stays."""
    has_images = exists().where(AskedImage.queue_id == Queue.id)
    with store.reading() as session:
        expired = list(session.scalars(select(Queue.id).where(Queue.closed_at < now - timedelta(days=days), has_images)))
    for queue_id in expired:
        with store.writing() as session:
            still = select(Queue.id).where(Queue.id == queue_id, Queue.closed_at.is_not(None))  # it may have been opened again
            session.execute(delete(AskedImage).where(AskedImage.queue_id.in_(still)))
    return len(expired)


def let_cells_leave(session: Session, report: Report) -> None:
    """Delete the images of a report's cells from the queues that they came into, and let the cells leave them, since the report
    is removed. What readers said of them stays: it names neither a report nor a specimen."""
    elsewhere = select(Cell.sha256).where(Cell.report_id != report.id)
    cells = select(Cell.sha256).where(Cell.report_id == report.id, Cell.sha256.not_in(elsewhere))
    session.execute(delete(AskedImage).where(AskedImage.sha256.in_(cells)))
    leaves = {"state": "withdrawn", "withdrawn": "removed", "vacant": False, "answer": None, "how": None, "agreed_at": None}
    session.execute(update(Asked).where(Asked.sha256.in_(cells)).values(leaves))


_OF_CELL: Final = (KeptImage.report_id == Cell.report_id) & (KeptImage.position == Cell.position)


def _keys(session: Session) -> ImageKeys:
    keys: ImageKeys = session.info[IMAGE_KEYS]
    return keys


def _sealed(print_: bytes | None, key: ImageKey | None, sha256: str) -> bytes | None:
    return print_ if print_ is None or key is None else key.seal(print_, _PRINT + sha256)


def _opened(data: bytes, name: str | None, about: str, keys: ImageKeys) -> bytes:
    return data if name is None else keys.named(name).open(data, about)
