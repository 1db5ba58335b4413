"""The images of a report that the store keeps: the one place where they are taken out of it."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from serving.store import Cell


def images_of(session: Session, report_id: str, positions: Sequence[int]) -> dict[int, bytes]:
    """The files at these places of a report, as they were posted; of those that are kept."""
    query = select(Cell.position, Cell.image).where(Cell.report_id == report_id, Cell.position.in_(positions))
    return {position: bytes(image) for position, image in session.execute(query) if image is not None}
