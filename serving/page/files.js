/** From what was dropped or chosen to the image files in it, and these in batches that one request may hold. */

const IMAGE = /\.(jpe?g|png|bmp|tiff?)$/i;
const MAX_FILE_BYTES = 32 * 2 ** 20; // a larger one would make the service refuse its whole batch
const BATCH_BYTES = 32 * 2 ** 20;

/** Image files and how many other files were left out. Folders are read to the bottom. */
export async function dropped(transfer) {
  // Before anything is waited for: the browser empties the transfer when the event is over.
  const entries = [...transfer.items].filter((item) => item.kind === "file").map((item) => item.webkitGetAsEntry());
  const found = [];
  for (const entry of entries) if (entry) await collect(entry, found);
  return sorted(found);
}

/** The same of a file input. */
export const chosen = (input) => sorted([...input.files].map((file) => ({ path: file.webkitRelativePath || file.name, file })));

async function collect(entry, found) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    found.push({ path: entry.fullPath, file });
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // a hundred at a time
    if (!some.length) return;
    for (const inner of some) await collect(inner, found);
  }
}

function sorted(found) {
  const usable = found.filter(
    ({ path, file }) => IMAGE.test(path) && !path.split("/").some((part) => part.startsWith(".")) && file.size <= MAX_FILE_BYTES,
  );
  const order = new Intl.Collator("en", { numeric: true });
  usable.sort((a, b) => order.compare(a.path, b.path));
  return { files: usable.map(({ file }) => file), others: found.length - usable.length };
}

/** Cut files into lists of at most `count` files and BATCH_BYTES bytes. */
export function batches(files, count) {
  const lists = [];
  let bytes = 0;
  for (const file of files) {
    const last = lists.at(-1);
    bytes += file.size;
    if (!last || last.length === count || bytes > BATCH_BYTES) {
      lists.push([file]);
      bytes = file.size;
    } else last.push(file);
  }
  return lists;
}
