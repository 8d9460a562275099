"use strict";
// The label file with the reviewer's corrections. Each format is the very text that was written, changed where a point
// was moved, hidden or rejected and where an object was rejected; everything else stays as it is.
//
// patchLabels(file, edits): file = {format, text} or, of YOLO, {format, files: {name: text}}; edits is a list of
// {photo, object, serial, name, size, category, keypoints, removed, points: [{k, x, y, v}]}: indices of the photo in
// the file and of the object in its photo, both from 0; serial numbers all objects of the file from 0; points holds
// those that changed. Returns {name suffix, blob parts}.

const PATCHERS = {
  coco(text, edits) {
    const document_ = JSON.parse(text);
    for (const edit of edits) {
      const entry = document_.annotations[edit.serial];
      for (const point of edit.points) {
        entry.keypoints.splice(3 * point.k, 3, ...(point.v ? [point.x, point.y, point.v] : [0, 0, 0]));
      }
      entry.num_keypoints = entry.keypoints.filter((value, index) => index % 3 === 2 && value > 0).length;
    }
    const gone = new Set(edits.filter((edit) => edit.removed).map((edit) => edit.serial));
    document_.annotations = document_.annotations.filter((entry, index) => !gone.has(index));
    return JSON.stringify(document_, null, 1) + "\n";
  },

  "label-studio"(text, edits) {
    const tasks = JSON.parse(text);
    for (const edit of edits) {
      const annotation = tasks[edit.photo].annotations[0];
      const prefix = `${edit.photo + 1}-${edit.object + 1}-`;
      const mine = (region) => region.id.startsWith(prefix);
      if (edit.removed) {
        annotation.result = annotation.result.filter((region) => !mine(region));
        continue;
      }
      for (const point of edit.points) {
        const id = `${prefix}${point.k + 1}`;
        const old = annotation.result.find((region) => region.id === id);
        annotation.result = annotation.result.filter((region) => region.id !== id);
        if (!point.v) continue;
        const place = { x: (100 * point.x) / edit.size[0], y: (100 * point.y) / edit.size[1], width: 0.5 };
        const region = {
          original_width: edit.size[0], original_height: edit.size[1], image_rotation: 0, to_name: "image", id,
          type: "keypointlabels", from_name: "keypoint",
          value: { ...place, keypointlabels: [edit.keypoints[point.k]] }, parentID: `${prefix}box`,
        };
        if (point.v === 1) region.meta = { text: ["hidden"] };
        if (old && "score" in old) region.score = old.score;
        annotation.result.push(region);
      }
    }
    return JSON.stringify(tasks, null, 1) + "\n";
  },

  cvat(text, edits) {
    const document_ = new DOMParser().parseFromString(text, "application/xml");
    const images = [...document_.querySelectorAll("annotations > image")];
    for (const edit of edits) {
      const image = images[edit.photo];
      const shapes = [...image.children].filter((shape) => shape.getAttribute("group_id") === String(edit.serial + 1));
      if (edit.removed) {
        shapes.forEach((shape) => shape.remove());
        continue;
      }
      let skeleton = shapes.find((shape) => shape.tagName === "skeleton");
      if (!skeleton && edit.points.some((point) => point.v)) {
        skeleton = document_.createElement("skeleton");
        const attributes = { label: edit.category, source: "manual", z_order: "0", group_id: String(edit.serial + 1) };
        for (const [key, value] of Object.entries(attributes)) skeleton.setAttribute(key, value);
        for (const name of edit.keypoints) {
          const point = document_.createElement("points");
          const off = { label: name, source: "manual", outside: "1", occluded: "0", points: "0.0,0.0" };
          for (const [key, value] of Object.entries(off)) point.setAttribute(key, value);
          skeleton.append(point);
        }
        image.prepend(skeleton);
        shapes.filter((shape) => shape.tagName === "tag").forEach((shape) => shape.remove());
      }
      for (const point of edit.points) {
        if (!skeleton) break;
        const element = skeleton.children[point.k];
        element.setAttribute("outside", point.v ? "0" : "1");
        element.setAttribute("occluded", point.v === 1 ? "1" : "0");
        element.setAttribute("points", point.v ? `${point.x},${point.y}` : "0.0,0.0");
      }
    }
    return `<?xml version='1.0' encoding='utf-8'?>\n${new XMLSerializer().serializeToString(document_.documentElement)}\n`;
  },

  csv(text, edits) {
    const rows = parseRows(text);
    const header = rows[0];
    const at = (row, name) => row[header.indexOf(name)] ?? "";
    const gone = new Set();
    for (const edit of edits) {
      const mine = rows.filter((row) => at(row, "photo") === edit.name && at(row, "object") === String(edit.object + 1));
      if (edit.removed) {
        const others = rows.filter((row) => at(row, "photo") === edit.name && !gone.has(row) && !mine.includes(row));
        mine.slice(others.length ? 0 : 1).forEach((row) => gone.add(row));
        if (!others.length) mine[0].fill("", 3); // the photo stays, without objects
        continue;
      }
      for (const point of edit.points) {
        const row = mine.find((candidate) => at(candidate, "keypoint") === edit.keypoints[point.k]);
        row[header.indexOf("x")] = point.v ? String(point.x) : "";
        row[header.indexOf("y")] = point.v ? String(point.y) : "";
        row[header.indexOf("visibility")] = String(point.v);
      }
    }
    return formatRows(rows.filter((row) => !gone.has(row)));
  },

  deeplabcut(text, edits) {
    const rows = parseRows(text);
    const parts = rows.find((row) => row[0] === "bodyparts");
    const individuals = rows.find((row) => row[0] === "individuals");
    const heads = individuals ? 4 : 3;
    for (const edit of edits) {
      const row = rows[heads + edit.photo];
      const mine = (column) => !individuals || individuals[column] === `${edit.category}_${edit.ofKind + 1}`;
      const set = (column, x, y) => { row[column] = x; row[column + 1] = y; };
      for (let column = 1; column < parts.length; column += 2) {
        if (!mine(column)) continue;
        if (edit.removed) set(column, "", "");
        const point = edit.points.find((candidate) => edit.keypoints[candidate.k] === parts[column]);
        if (point && !edit.removed) set(column, point.v ? String(point.x) : "", point.v ? String(point.y) : "");
      }
    }
    return formatRows(rows);
  },

  tps(text, edits) {
    const blocks = text.trimEnd().split(/\n(?=LM=)/);
    const places = blocks.map((block) => (/^LM=0\b/.test(block) && !/^COMMENT=/m.test(block) ? null : block));
    const order = places.flatMap((block, index) => (block === null ? [] : [index]));
    for (const edit of edits) {
      const index = order[edit.serial];
      const lines = blocks[index].split("\n");
      if (edit.removed) {
        blocks[index] = ["LM=0", ...lines.filter((line) => /^(IMAGE|ID)=/.test(line))].join("\n");
        continue;
      }
      for (const point of edit.points) lines[1 + point.k] = point.v ? `${point.x} ${edit.size[1] - point.y}` : "-1 -1";
      blocks[index] = lines.join("\n");
    }
    return blocks.join("\n") + "\n";
  },
};

function patchYolo(files, edits) {
  const changed = { ...files };
  const gone = {};
  for (const edit of edits) {
    const name = `labels/${edit.name.replace(/\.[^./]*$/, "")}.txt`;
    const lines = changed[name].split("\n");
    const cells = lines[edit.object].split(" ");
    for (const point of edit.points) {
      const place = point.v ? [point.x / edit.size[0], point.y / edit.size[1], point.v] : [0, 0, 0];
      cells.splice(5 + 3 * point.k, 3, ...place);
    }
    lines[edit.object] = cells.join(" ");
    changed[name] = lines.join("\n");
    if (edit.removed) (gone[name] ??= []).push(edit.object);
  }
  for (const [name, objects] of Object.entries(gone)) {
    changed[name] = changed[name].split("\n").filter((line, index) => !objects.includes(index)).join("\n");
  }
  return changed;
}

function patchLabels(file, edits) {
  if (file.format === "yolo") return { suffix: ".zip", parts: [zip(patchYolo(file.files, edits))] };
  return { suffix: "", parts: [PATCHERS[file.format](file.text, edits)] };
}

function parseRows(text) {
  const rows = [[]];
  let cell = "", quoted = false;
  for (let place = 0; place < text.length; place++) {
    const character = text[place];
    if (quoted) {
      if (character !== '"') cell += character;
      else if (text[place + 1] === '"') { cell += '"'; place++; }
      else quoted = false;
    } else if (character === '"') quoted = true;
    else if (character === "," || character === "\n") {
      rows.at(-1).push(cell);
      cell = "";
      if (character === "\n") rows.push([]);
    } else cell += character;
  }
  if (cell || rows.at(-1).length) rows.at(-1).push(cell);
  return rows.filter((row) => row.length);
}

function formatRows(rows) {
  const quote = (cell) => (/[",\n\r]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell);
  return rows.map((row) => row.map(quote).join(",") + "\n").join("");
}

// A zip archive without compression: names and contents one after the other, then the list of them (APPNOTE 4.3).
function zip(files) {
  const encoder = new TextEncoder();
  const local = [], central = [];
  let offset = 0, listed = 0;
  for (const [name, text] of Object.entries(files)) {
    const path = encoder.encode(name), data = encoder.encode(text);
    const common = [20, 0x0800, 0, 0, 0x21]; // version 2.0, names in UTF-8, stored, midnight of 1 January 1980
    const sizes = (view, at) => {
      view.setUint32(at, crc32(data), true);
      view.setUint32(at + 4, data.length, true);
      view.setUint32(at + 8, data.length, true);
      view.setUint16(at + 12, path.length, true);
    };
    const head = new DataView(new ArrayBuffer(30));
    head.setUint32(0, 0x04034b50, true);
    common.forEach((value, index) => head.setUint16(4 + 2 * index, value, true));
    sizes(head, 14);
    local.push(head.buffer, path, data);
    const entry = new DataView(new ArrayBuffer(46));
    entry.setUint32(0, 0x02014b50, true);
    entry.setUint16(4, 20, true);
    common.forEach((value, index) => entry.setUint16(6 + 2 * index, value, true));
    sizes(entry, 16);
    entry.setUint32(42, offset, true);
    central.push(entry.buffer, path);
    offset += 30 + path.length + data.length;
    listed += 46 + path.length;
  }
  const end = new DataView(new ArrayBuffer(22));
  const count = Object.keys(files).length;
  end.setUint32(0, 0x06054b50, true);
  end.setUint16(8, count, true);
  end.setUint16(10, count, true);
  end.setUint32(12, listed, true);
  end.setUint32(16, offset, true);
  return new Blob([...local, ...central, end.buffer], { type: "application/zip" });
}

function crc32(bytes) {
  let sum = -1;
  for (const byte of bytes) {
    sum ^= byte;
    for (let bit = 0; bit < 8; bit++) sum = (sum >>> 1) ^ (sum & 1 ? 0xedb88320 : 0);
  }
  return (sum ^ -1) >>> 0;
}
