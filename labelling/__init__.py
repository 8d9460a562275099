"""Labels of a few photos carried to many others: annotations, their formats, the review sheet, ``cats label``."""
