# See __init__.pyi.

from typing import ClassVar, Literal

from sqlalchemy.orm import Session, scoped_session

from . import Factory

class SQLAlchemyModelFactory(Factory):
    class Meta(Factory.Meta):
        sqlalchemy_session: ClassVar[Session | scoped_session[Session]]
        sqlalchemy_session_persistence: ClassVar[Literal["commit", "flush"] | None]
