# See ../../__init__.pyi.

from sqlalchemy.orm import Session, scoped_session

class ModelView:
    def __init__(
        self, model: type, session: Session | scoped_session[Session]
    ) -> None: ...
