"""Labels of a few photos carried to many others: annotations, their formats, the review sheet, ``cats label``.

::

    from cats.labelling.label import label_photos

    for labelled in label_photos(references, ["a.jpg", "b.jpg"]):  # references: cats.labelling.annotations.Annotations
        print(labelled.path, labelled.points, labelled.probability)
"""
