"""Teachers: whatever can label a transfer set."""

from keras_distill.teachers.base import Teacher as Teacher
from keras_distill.teachers.factory import as_teacher as as_teacher
from keras_distill.teachers.keras_model import KerasTeacher as KerasTeacher

__all__ = ["KerasTeacher", "Teacher", "as_teacher"]
