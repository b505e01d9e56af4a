"""The stable codes of `DataError`: a code keeps its meaning for ever and is never reused.

1xx is stored data: 10x folders and splits, 11x image files, 12x annotation files, 13x objects,
14x RecordIO, 15x JSON, 16x stores and archives, 17x and 18x what the doctor finds in a whole set.
docs/doctor.md lists them all.
"""

FOLDER_MISSING = "SSD101"
SPLIT_MISSING = "SSD102"
SPLIT_EMPTY = "SSD103"
RECORD_TWICE = "SSD104"

IMAGE_MISSING = "SSD111"
IMAGE_UNREADABLE = "SSD112"
IMAGE_TOO_LARGE = "SSD113"
SIZE_DISAGREES = "SSD114"

ANNOTATION_MISSING = "SSD121"
ANNOTATION_UNREADABLE = "SSD122"

BOX_UNREADABLE = "SSD131"
BOX_OUTSIDE = "SSD132"
BOX_WITHOUT_AREA = "SSD133"
UNKNOWN_CLASS = "SSD134"
TOO_MANY_OBJECTS = "SSD135"
NO_BOX_LEFT = "SSD136"
BOXES_NORMALISED = "SSD137"

# RecordIO files.
RECORD_FILE_MISSING = "SSD141"
RECORD_DAMAGED = "SSD142"
RECORD_INDEX_UNREADABLE = "SSD143"
LABEL_UNREADABLE = "SSD144"
OBJECT_WIDTHS_MIXED = "SSD145"
RECORDS_NOT_INDEXED = "SSD146"

# JSON and other formats whose annotations share a file or refer to their images by name.
ANNOTATION_TOO_LARGE = "SSD151"
CLASS_NAMES_DISAGREE = "SSD152"
REFERENCE_OUTSIDE = "SSD153"
OBJECT_WITHOUT_IMAGE = "SSD154"
LABEL_MISSING = "SSD155"

# Object stores and archives.
OBJECT_MISSING = "SSD161"
ACCESS_REFUSED = "SSD162"
TRANSFER_FAILED = "SSD163"
CONTENT_DISAGREES = "SSD164"
NAME_UNSAFE = "SSD165"
ARCHIVE_MISSING = "SSD166"
ARCHIVE_UNREADABLE = "SSD167"

# Found by the doctor only: oddities of images, and of the set as a whole.
EXIF_ORIENTATION = "SSD171"
EXIF_ILLEGAL = "SSD172"
IMAGE_DAMAGED = "SSD173"
IMAGE_TWICE = "SSD174"
NAME_TWICE = "SSD175"
BOX_TWICE = "SSD176"
LEAKAGE = "SSD177"
NO_OBJECTS = "SSD178"
CLASS_WITHOUT_OBJECTS = "SSD179"
CLASSES_ALIKE = "SSD180"
TINY_OBJECTS = "SSD181"
UNREACHED_OBJECTS = "SSD182"
LABEL_WIDTH_SMALL = "SSD183"
IMAGE_NOT_ANNOTATED = "SSD184"
ANNOTATION_WITHOUT_IMAGE = "SSD185"

# The codes of findings after which every image and box can still be used, with short descriptions;
# every other code is an error.
WARNINGS = {
    OBJECT_WIDTHS_MIXED: "objects of 5 and of 6 numbers",
    RECORDS_NOT_INDEXED: "records missing from the index",
    EXIF_ORIENTATION: "image turned by its EXIF orientation",
    EXIF_ILLEGAL: "illegal EXIF orientation",
    IMAGE_DAMAGED: "image with damaged data",
    IMAGE_TWICE: "duplicate image",
    NAME_TWICE: "nearly identical names",
    BOX_TWICE: "duplicate box",
    NO_OBJECTS: "images without objects",
    CLASS_WITHOUT_OBJECTS: "class without objects",
    CLASSES_ALIKE: "classes with nearly identical names",
    TINY_OBJECTS: "very small objects",
    UNREACHED_OBJECTS: "objects that no anchor overlaps well",
    IMAGE_NOT_ANNOTATED: "image without annotation",
    ANNOTATION_WITHOUT_IMAGE: "annotation without image",
}

# Errors after which the image stays in the set: only a box, a name or a second record is dropped.
KEEPS_THE_IMAGE = frozenset(
    {
        RECORD_TWICE,
        BOX_UNREADABLE,
        BOX_OUTSIDE,
        BOX_WITHOUT_AREA,
        UNKNOWN_CLASS,
        CLASS_NAMES_DISAGREE,
        OBJECT_WITHOUT_IMAGE,
    }
)
